"""What nodes and transfers cost, by whose word, and until when."""
