"""A command as a job on a cluster: `package` packs the working directory, `submission` finds or
starts the job, `follow` prints its log, and `fetch` brings its results."""
