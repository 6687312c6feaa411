"""A gallery over HTTP: `desk` answers, `app` has the routes and the page, `guard` keeps out what is
not wanted, `deploy` runs it on Ray Serve with an encoder per GPU.
"""
