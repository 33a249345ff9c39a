"""What is measured and tried beside the tests: other products on the same traffic, and fuzzing."""
