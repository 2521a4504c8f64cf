"""One module for each kind of file: bytes -> rows with random access, and the place of each."""
