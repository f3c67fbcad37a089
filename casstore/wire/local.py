"""How the command and the background server of the same user find each other on one machine.

Decided here and only here: the names of the files in the server's state folder, the word that says it is
ready, and the longest path a unix socket may have. The command decides where the folders are and tells the
server.
"""

from __future__ import annotations

PID_FILE = "server.pid"
"""Holds the server's process id; a running server keeps it locked (flock), and nothing else ever does."""
START_LOCK_FILE = "server.start"
"""Locked (flock) by a command while it starts the server, so that two commands start one."""
LOG_FILE = "server.log"
DATABASE_FILE = "server.sqlite"
KEY_FILE = "secret.key"
"""Opens the secrets in the database, unless the operator keeps the key elsewhere."""
WORKFLOWS_FOLDER = "workflows"

READY = b"ready\n"
"""What the server writes to the descriptor it was given once it answers requests."""

ERROR_PREFIX = "ERROR: "
HINT_PREFIX = "HINT: "
"""How the last lines in the log of a server begin that could not start."""
PROGRESS_PREFIX = "PROGRESS: "
"""How a line begins by which the server's program says in JSON how far it is with what takes long."""

MAX_SOCKET_PATH = 107
"""Bytes in the path of a unix socket (``sun_path`` without its terminator)."""
