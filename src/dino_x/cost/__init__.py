"""What a step takes: operations and memory, by arithmetic on shapes."""
