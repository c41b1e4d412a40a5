"""One file a public data set: how its download becomes a folder with a table."""
