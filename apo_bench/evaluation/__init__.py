"""Every round evaluated on held-out data that methods never see: gold reward models, diagnostics, oracle, the method contract."""
