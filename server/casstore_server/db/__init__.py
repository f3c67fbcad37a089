"""What the server remembers, in SQLite (WAL): tables, their migrations, and the queries on them."""
