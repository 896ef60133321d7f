/**
 * A proxy in a process of its own, so that its memory can be measured: `node proxy-process.js PROXY CONFIG`.
 *
 * PROXY is a compiled proxy.js. Tells its parent the port, and ends when the parent goes away.
 */
import { pathToFileURL } from 'node:url';

const [module = '', config = ''] = process.argv.slice(2);
const { createProxy, loadConfig } = await import(pathToFileURL(module).href);
const proxy = createProxy(loadConfig(config));
process.send?.(await proxy.start());
process.once('disconnect', () => void proxy.close());
