"""Where the paper's released code departs from this project, each departure switched on by name."""
