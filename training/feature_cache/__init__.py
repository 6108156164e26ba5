"""Features of frozen towers, computed once and kept on disk."""
