"use strict";
// Step times by cause: a stacked bar a plan, best on top, with its 80 % band.

charts.kinds["step-time"] = (figure, section, data) => {
  const stage = charts.stage(figure, "Bars of the step time of every plan by cause");
  const waits = ([kind, color]) => (kind === "waiting" ? charts.color("waiting") : color);
  const share = (time, plan) => `${((100 * time) / data.totals[plan]).toFixed(1)} %`;

  function tip(plan) {
    const causes = data.kinds.map(([kind], index) => [kind, data.values[plan][index]]).filter(([, time]) => time > 0);
    const band = data.bands[plan];
    return charts.tip(data.names[plan], [
      `${charts.seconds(data.totals[plan])}${data.gains[plan] ? `, ${data.gains[plan]}` : ""}`,
      band && `80 % band ${charts.seconds(band[0])} to ${charts.seconds(band[1])}`,
      ...causes.map(([kind, time]) => `${kind} ${charts.seconds(time)}, ${share(time, plan)}`),
    ]);
  }

  // The band below a bar: from end to end, with two ticks.
  function band(_, api) {
    const [left, middle] = api.coord([api.value(1), api.value(0)]);
    const [right] = api.coord([api.value(2), api.value(0)]);
    const y = middle + api.size([0, 1])[1] * 0.42;
    const style = { stroke: charts.color("ink"), lineWidth: 1 };
    const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
    return { type: "group", silent: true, children: [line(left, y, right, y), line(left, y - 3, left, y + 3), line(right, y - 3, right, y + 3)] };
  }

  return () => {
    const narrow = figure.clientWidth < 560;
    const left = narrow ? 96 : 190;
    const row = data.names.length <= 12 ? 34 : 24;
    const height = data.names.length * row;
    const longest = Math.max(...data.totals, ...data.bands.filter(Boolean).map(([, high]) => high));
    const wide = figure.clientWidth - 60 - left;
    const option = { ...charts.base() };
    option.legend = {
      top: 0, left: 0, type: "scroll", itemWidth: 12, itemHeight: 12, data: data.kinds.map(([kind]) => kind),
      textStyle: { color: charts.color("ink") }, pageTextStyle: { color: charts.color("soft") }, pageIconColor: charts.color("accent"),
    };
    option.grid = { left, right: narrow ? 84 : 120, top: 36, height };
    option.xAxis = charts.axis({
      type: "value", max: longest, name: "mean time of a device per step", nameLocation: "middle", nameGap: 26,
      axisLabel: { formatter: charts.seconds, hideOverlap: true, showMaxLabel: false },
      splitLine: { show: true, lineStyle: { color: charts.color("line") } },
    });
    option.yAxis = charts.axis({
      type: "category", inverse: true, data: data.names,
      axisLabel: { interval: 0, width: left - 10, overflow: "truncate", color: charts.color("ink"), fontSize: row > 30 ? 12 : 10 },
    });
    option.series = data.kinds.map((kind, index) => ({
      type: "bar", name: kind[0], stack: "step", barWidth: "62%", itemStyle: { color: waits(kind) },
      data: data.values.map((values) => values[index]),
      label: {
        show: kind[0] !== "waiting", fontSize: 10, color: charts.ink(kind[1]),
        formatter: ({ value }) => ((value / longest) * wide > 62 ? charts.seconds(value) : ""),
      },
    }));
    option.series.push({ // the sum and the gain, right of each bar
      type: "bar", stack: "step", silent: true, data: data.names.map(() => 0),
      label: {
        show: true, position: "right", color: charts.color("ink"), fontSize: 11,
        formatter: ({ dataIndex }) => `${charts.seconds(data.totals[dataIndex])}  ${narrow ? "" : data.gains[dataIndex]}`,
      },
    }, {
      type: "custom", renderItem: band, silent: true, encode: { x: [1, 2], y: 0 },
      data: data.bands.flatMap((ends, plan) => (ends ? [[plan, ...ends]] : [])),
    });
    Object.assign(option.tooltip, {
      trigger: "axis", axisPointer: { type: "shadow" }, formatter: ([{ dataIndex }]) => tip(dataIndex),
    });
    stage.draw(option, height + 90);
    stage.said.textContent = data.names.map((name, plan) => {
      const most = data.values[plan].reduce((found, time, index) => (time > data.values[plan][found] ? index : found), 0);
      return `${name}: most in ${data.kinds[most][0]}, ${share(data.values[plan][most], plan)}`;
    }).slice(0, 2).join("; ") + ".";
  };
};
