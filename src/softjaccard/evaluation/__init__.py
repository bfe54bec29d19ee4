"""Looking at what a network has learnt; import from the modules, such as `softjaccard.evaluation.figures`."""
