-- Orthanc sends each series of images to medseg once nothing has been added to it for "StableAge" seconds. What could
-- not be sent, because medseg was away, is sent again with the next series.

-- What is made of images is not for segmentation, and medseg's own results must not come back to it.
local MADE_OF_IMAGES = { SEG = true, SR = true, PR = true, KO = true, RTSTRUCT = true, DOC = true }
local unsent = {}

function OnStableSeries(series, tags, metadata)
  if MADE_OF_IMAGES[tags['Modality']] or tags['Manufacturer'] == 'medseg' then return end
  local resources = unsent
  unsent = {}
  table.insert(resources, series)
  for _, one in ipairs(resources) do
    -- As a job of its own: Lua is locked while this runs, and SendToModality() takes single instances only. The request
    -- for storage commitment tells medseg that the series is complete.
    RestApiPost('/modalities/medseg/store',
                DumpJson({ Resources = { one }, Synchronous = false, StorageCommitment = true }))
  end
end

function OnJobFailure(job)
  local failed = ParseJson(RestApiGet('/jobs/' .. job))
  if failed['Type'] == 'DicomModalityStore' and failed['Content']['RemoteAet'] == 'MEDSEG' then
    for _, series in ipairs(failed['Content']['ParentResources']) do
      table.insert(unsent, series)
    end
  end
end
