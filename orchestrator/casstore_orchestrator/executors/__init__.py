"""Ways of running the tasks of a group. ``process.ProcessExecutor`` is the one that needs nothing but this machine.

Nothing is imported here: the small processes inside this package start without the rest.
"""
