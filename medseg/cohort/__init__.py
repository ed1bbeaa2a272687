"""Cohorts: many studies, one run, one table.

inputs -> scan -> items -> (workers: plan, run) -> finished -> tables

items       a study, or a NIfTI volume, of a cohort: what is handed to a worker
scan        folders, zips, DICOMDIRs -> items; listed: a CSV or Parquet file -> items
claims      who works on what, where several runs share an output folder
finished    what was done before, and need not be done again
study       an item -> results and failures, in this process; worker: a process of its own that does so
run         workers, progress, and all items to their end
bids        results as files of a BIDS dataset; bids_names: what these are called
summary     the tables again, gathered for report.html: report, with drawings of charts
tables      results.csv, results.parquet, failures.csv, manifest.json
"""
