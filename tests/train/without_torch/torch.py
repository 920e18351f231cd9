"""Stands before torch on the path of the runs that tests start: tensorboardX would load it, for a second in each."""
raise ImportError('a run needs no torch')
