"""What the scripts of analysis/ share: students by many methods, trained, compared and reported."""
