"""Which images there are: finding, headers, the table, conditions, labels, splits."""
