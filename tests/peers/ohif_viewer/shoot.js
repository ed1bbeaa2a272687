// node shoot.js URL PICTURE.png Z_MM SERIES_NUMBER...
//
// Opens OHIF's segmentation mode in Debian's Chromium, loads the SEG of each series number into a viewport of its own,
// shows the axial slice at z = Z_MM (LPS), and prints as JSON what OHIF holds: for each SEG the labels of its segments,
// and its voxels by source instance and segment.
import { chromium } from 'playwright-core';

const [url, picture, z, ...seriesNumbers] = process.argv.slice(2);
const SOFTWARE_WEBGL = ['--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'];
const QUIET = ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--no-first-run', '--disable-dev-shm-usage'];

function held() {
  const { cornerstone, cornerstoneTools } = window;
  return cornerstoneTools.segmentation.state.getSegmentations().map((segmentation) => {
    const voxels = {};
    for (const id of segmentation.representationData.Labelmap.imageIds) {
      const image = cornerstone.cache.getImage(id);
      const source = image.referencedImageId.match(/instances\/([\d.]+)/)[1];
      for (const label of image.voxelManager.getScalarData()) {
        if (label) {
          voxels[source] ??= {};
          voxels[source][label] = (voxels[source][label] ?? 0) + 1;
        }
      }
    }
    const labels = Object.values(segmentation.segments).map((segment) => [segment.segmentIndex, segment.label]);
    return { labels: Object.fromEntries(labels), voxels };
  });
}

function show(height) {
  for (const engine of window.cornerstone.getRenderingEngines()) {
    for (const viewport of engine.getViewports()) {
      const { focalPoint: [x, y, from], position: [px, py, pz] } = viewport.getCamera();
      viewport.setCamera({ focalPoint: [x, y, height], position: [px, py, pz + height - from] });
      viewport.render();
    }
  }
}

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium', headless: true, args: [...SOFTWARE_WEBGL, ...QUIET],
});
try {
  const page = await browser.newPage({ viewport: { width: 1200, height: 760 } });
  page.setDefaultTimeout(90000);
  await page.route('**/*', (route) => {
    const asked = new URL(route.request().url());
    return asked.hostname === '127.0.0.1' || asked.protocol === 'blob:' ? route.continue() : route.abort();
  });
  await page.goto(url);
  await page.locator('canvas').first().waitFor();
  for (const [index, number] of seriesNumbers.entries()) {
    await page.locator('canvas').nth(index).click();
    await page.waitForTimeout(2000);  // OHIF takes a double click for the viewport it has finished to activate
    await page.getByText(`S:${number}`).first().dblclick();
    await page.waitForFunction(
      (count) => window.cornerstoneTools.segmentation.state.getSegmentations().length === count, index + 1);
  }
  await page.locator('canvas').last().click();
  await page.waitForTimeout(3000);
  await page.evaluate(show, Number(z));
  await page.waitForTimeout(3000);
  await page.screenshot({ path: picture });
  console.log(JSON.stringify(await page.evaluate(held)));
} finally {
  await browser.close();
}
