"""Tables and plots of what runs left; imports nothing of the training code."""
