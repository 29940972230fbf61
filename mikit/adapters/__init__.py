"""mikit inside other people's training loops; none of these modules needs its library to be imported."""
