"""What an edited model says: scores, likelihoods, locality, and where facts sit."""
