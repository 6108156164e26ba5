"""Records into batches: collators, packing of several records into a row, and what a batch looks like."""
