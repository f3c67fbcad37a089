"""Real servers of object storage on the loopback interface, for tests and measurements. One module a service."""
