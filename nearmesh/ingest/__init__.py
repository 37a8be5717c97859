"""From files to rows of a collection: who reads a file, where its text is cut, what of it is sent, and what goes."""
