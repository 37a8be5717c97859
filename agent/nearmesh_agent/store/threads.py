"""Names of the threads in which versions are pulled."""

# How the names of those begin that read from other machines, which may hang in a call for a while.
READER_THREADS = "pull-read"
