"""Data sets, transforms and Lightning data modules; import from the modules, such as `softjaccard.data.synthetic`."""
