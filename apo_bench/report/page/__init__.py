"""The report people open: one self-contained html page of a finished run, drawn without a network, fonts or a plotting library."""
