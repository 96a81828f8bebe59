"""What a compiled program says of itself: work, traffic, memory, time."""
