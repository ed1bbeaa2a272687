"""How DICOMweb is spoken (PS3.18): media types, multipart, data sets in JSON; and the client. Knows nothing of jobs."""
