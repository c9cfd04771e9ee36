"""HTTP: the application, what surrounds every request, and how answers and errors are written."""
