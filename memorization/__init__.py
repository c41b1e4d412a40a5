"""Which synthetic images are too close to a real one: embed, calibrate on the site's own patients, filter."""
