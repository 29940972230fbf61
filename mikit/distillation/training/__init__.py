"""A small trainer for students and teachers."""
