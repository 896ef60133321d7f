/**
 * What a process costs and how promptly it does its work: CPU, memory, descriptors, garbage collection, its event loop.
 *
 * Not prom-client's collectDefaultMetrics(): that lists every socket and descriptor while nothing else can run, tells of the
 * event loop only what each scrape happens to see, and cannot be ended.
 */
import { readFileSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { performance, type PerformanceEntry, PerformanceObserver } from 'node:perf_hooks';
import type { Metrics } from './metrics.ts';

const TICK_MS = 20;
const SECOND_MS = 1_000;
const DESCRIPTORS = '/proc/self/fd';

/** Watches this process, until the function that this returns is called. Keeps no process alive. */
export function watchProcess(metrics: Metrics): () => void {
  const endings = [
    watchEventLoop(metrics),
    watchGarbage(metrics),
    metrics.onSample(() => sampleProcess(metrics)),
  ];
  return () => endings.forEach((end) => end());
}

/**
 * The worst of each second, and how many seconds: so it adds up over workers, and whoever scrapes takes it from nobody.
 *
 * A timer, and not monitorEventLoopDelay(), which misses a delay that has begun when it is reset.
 */
function watchEventLoop({ loopDelay }: Metrics): () => void {
  let lastTick = performance.now();
  let secondBegan = lastTick;
  let worstMs = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    worstMs = Math.max(worstMs, now - lastTick - TICK_MS);
    lastTick = now;
    if (now - secondBegan < SECOND_MS) return;
    loopDelay.observe(worstMs / 1000);
    secondBegan = now;
    worstMs = 0;
  }, TICK_MS).unref();
  return () => clearInterval(timer);
}

/** V8's GCType. */
const GC_KINDS: ReadonlyMap<number, string> = new Map([
  [1, 'minor'],
  [2, 'minor'],
  [4, 'major'],
  [8, 'incremental'],
  [16, 'weakcb'],
]);

interface GarbageEntry extends PerformanceEntry {
  readonly detail: { readonly kind: number };
}

function watchGarbage({ gcSeconds }: Metrics): () => void {
  for (const kind of GC_KINDS.values()) gcSeconds.zero({ kind });
  const observer = new PerformanceObserver((list) => {
    // Which entries of this type have is not in the declarations.
    for (const { duration, detail } of list.getEntries() as GarbageEntry[]) {
      gcSeconds.observe({ kind: GC_KINDS.get(detail.kind) ?? 'other' }, duration / 1000);
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  return () => observer.disconnect();
}

async function sampleProcess(metrics: Metrics): Promise<void> {
  const { user, system } = process.cpuUsage();
  metrics.cpuSeconds.reset();
  metrics.cpuSeconds.inc((user + system) / 1e6);
  const { rss, heapUsed } = process.memoryUsage();
  metrics.residentBytes.set(rss);
  metrics.heapBytes.set(heapUsed);
  metrics.startTime.set(Math.round(performance.timeOrigin / 1000));
  const { active, idle } = performance.eventLoopUtilization();
  metrics.loopSeconds.reset();
  metrics.loopSeconds.inc({ state: 'active' }, active / 1000);
  metrics.loopSeconds.inc({ state: 'idle' }, idle / 1000);
  metrics.maxFds.set(MAX_DESCRIPTORS);
  metrics.openFds.set(await openDescriptors());
}

/** 0 where nobody says, which is elsewhere than on Linux. */
async function openDescriptors(): Promise<number> {
  try {
    // Linux 6.2 and newer say so at once; before, they have to be listed.
    const { size } = await stat(DESCRIPTORS);
    return size > 0 ? size : (await readdir(DESCRIPTORS)).length;
  } catch {
    return 0;
  }
}

/** Which Node raises at its start, and leaves alone then. */
const MAX_DESCRIPTORS = maxDescriptors();

function maxDescriptors(): number {
  try {
    return Number(
      /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? 0,
    );
  } catch {
    return 0;
  }
}
