"""`make plan`: what a stack's traffic would do to it, before anything is paid for.

Requests (`traffic`) go through a `simulation` of a deployment whose replicas Ray Serve's own autoscaling code adds and
removes (`autoscaler`), on `nodes` that take their time and cost what they cost. What of a stack file that needs, and
which other settings are tried, is in `stack`; `report` says which to take.
"""
