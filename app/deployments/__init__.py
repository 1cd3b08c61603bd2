"""What runs in Ray: one file per kind of deployment."""
