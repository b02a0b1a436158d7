"""The operations and the memory of a step, by arithmetic on shapes."""
