"""What is asked of files without changing them."""
