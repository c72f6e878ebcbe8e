"""How personalisation methods are trained, judged and compared here; each part by itself."""
