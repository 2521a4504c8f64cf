"""From a run file to running ranks: Ray, the run folder, what each worker assembles."""
