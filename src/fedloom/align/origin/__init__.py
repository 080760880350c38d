"""Origin: what a merged model that others made really is."""
