"""The checks of `headrace doctor`, by what they look at; flows/doctor.py runs them."""
