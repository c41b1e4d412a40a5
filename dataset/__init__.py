"""Sites, patients and folds of a source; reading, checking and converting it; the slices a generator learns from."""
