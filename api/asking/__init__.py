"""What is asked: parameters, ranges and pages."""
