"""A Ray cluster from outside: package, submit and follow a job."""
