"""Plugins: a policy that decides in somebody else's router or planner. One file each; docs/integrations.md."""
