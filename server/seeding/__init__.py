"""The demo: an agency with two advertisers, their projects, plans and campaigns, and a year of figures."""
