"""Words that all layers use: errors, seeds, files, values that cross a boundary."""
