// node load_seg.bundle.mjs SEG SOURCE_FOLDER
// Prints one JSON line: {"layers": n, "overlap": bool, "segments": {number: label}, "voxels": {number: {sopInstanceUID: count}}}
// Exits 1 with {"error": ...} when OHIF's loader would refuse the object.
import fs from 'fs';
import path from 'path';
import { adaptersSEG } from '@cornerstonejs/adapters';
import * as core from '@cornerstonejs/core';
import dcmjs from 'dcmjs';

const [, , segFile, sourceFolder] = process.argv;
const bytes = (file) => { const b = fs.readFileSync(file); return b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength); };
const dataset = (buffer) => {
  const message = dcmjs.data.DicomMessage.readFile(buffer);
  const natural = dcmjs.data.DicomMetaDictionary.naturalizeDataset(message.dict);
  // some de-identifiers empty it; the file meta still has it
  natural.SOPInstanceUID ||= dcmjs.data.DicomMetaDictionary.naturalizeDataset(message.meta).MediaStorageSOPInstanceUID;
  return natural;
};
const log = console.log;
console.log = console.warn = console.info = () => {};      // the adapters are chatty

const sources = fs.readdirSync(sourceFolder).sort().map((f) => dataset(bytes(path.join(sourceFolder, f))));
// the viewer shows slices by position along the normal
const normal = (s) => { const [a, b, c, d, e, f] = s.ImageOrientationPatient.map(Number); return [b * f - c * e, c * d - a * f, a * e - b * d]; };
const along = (s) => s.ImagePositionPatient.map(Number).reduce((sum, p, i) => sum + p * normal(s)[i], 0);
sources.sort((a, b) => along(a) - along(b));
const imageIds = sources.map((s) => 'wadouri:' + s.SOPInstanceUID);
const provider = {
  get(type, id) {
    const s = sources[imageIds.indexOf(id)];
    if (!s) return undefined;
    const iop = s.ImageOrientationPatient.map(Number);
    const spacing = s.PixelSpacing.map(Number);
    return {
      instance: s,
      generalImageModule: { sopInstanceUID: s.SOPInstanceUID },
      generalSeriesModule: { seriesInstanceUID: s.SeriesInstanceUID, modality: s.Modality },
      imagePixelModule: { rows: s.Rows, columns: s.Columns, bitsAllocated: 16, pixelRepresentation: 0, samplesPerPixel: 1, photometricInterpretation: 'MONOCHROME2' },
      imagePlaneModule: {
        rows: s.Rows, columns: s.Columns, rowCosines: iop.slice(0, 3), columnCosines: iop.slice(3), imageOrientationPatient: iop,
        imagePositionPatient: s.ImagePositionPatient.map(Number), rowPixelSpacing: spacing[0], columnPixelSpacing: spacing[1],
        frameOfReferenceUID: s.FrameOfReferenceUID, pixelSpacing: spacing,
      },
    }[type];
  },
};
core.metaData.addProvider((type, id) => provider.get(type, id), 10000);
try {
  const result = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(imageIds, bytes(segFile), { metadataProvider: provider, tolerance: 1e-3 });
  const voxels = {};
  for (const layer of result.labelMapImages) {
    layer.forEach((image, i) => {
      for (const v of image.getPixelData ? image.getPixelData() : image.voxelManager.getScalarData()) {
        if (!v) continue;
        voxels[v] ??= {};
        voxels[v][sources[i].SOPInstanceUID] = (voxels[v][sources[i].SOPInstanceUID] ?? 0) + 1;
      }
    });
  }
  const segments = {};
  for (const item of result.segMetadata.data) if (item) segments[item.SegmentNumber] = item.SegmentLabel;
  log(JSON.stringify({ layers: result.labelMapImages.length, overlap: Boolean(result.overlappingSegments), segments, voxels }));
  process.exit(0);
} catch (error) {
  log(JSON.stringify({ error: String(error.message ?? error) }));
  process.exit(1);
}
