"""What an operator does and asks: streams, keys, and the doctor."""
