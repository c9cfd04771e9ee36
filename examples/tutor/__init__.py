"""A tutor: assistant, textbook, functions, a thread of ten turns."""
